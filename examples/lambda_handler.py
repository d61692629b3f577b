"""A chat on AWS Lambda, behind a function URL; ``template.yaml`` deploys it.

Run it on the embedded engine with ``python examples/lambda_handler.py``. It needs no key and no AWS account:
``pip install '.[local]'``.
"""

import json
import os
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from chathistory_async import ChatHistoryStore, IdempotencyKeyReusedError
from chathistory_async.local import local_engine

# One store for all invocations in this process. Its clients stay open in between, and the synchronous methods need no
# event loop: with asyncio.run(), each invocation would open new clients.
STORE = ChatHistoryStore(os.environ.get("TABLE_NAME", "Chats"), session_index=True, key_parts=2)


def model(messages: list[BaseMessage]) -> str:
    """Play the part of a model."""
    return f"I was sent {len(messages)} messages."


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return a chat's messages, after the question in the request's body and its answer if it is a POST.

    The path is the chat's id. A request that is sent again with its Idempotency-Key is stored once.
    """
    request = event["requestContext"]
    # IAM has authenticated the user, who is a part of the key: no user can open the chat of another.
    user, chat_id = request["authorizer"]["iam"]["userId"], event["rawPath"].strip("/")
    history = STORE.session(chat_id, key={"SessionId": (user, chat_id)}, owner=user)
    if request["http"]["method"] == "POST":
        key = event["headers"].get("idempotency-key", request["requestId"])
        history.add_messages([HumanMessage(json.loads(event["body"])["text"])], idempotency_key=key)
        # The key is in use if an earlier attempt has stored its answer.
        with suppress(IdempotencyKeyReusedError):
            history.add_messages([AIMessage(model(history.messages))], idempotency_key=f"{key}-answer")
    messages = [{"role": message.type, "text": message.text} for message in history.messages]
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(messages)}


def main() -> None:
    """Create the table, send a question twice as after a lost response, and show what is stored."""
    with local_engine() as url:
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"}
        STORE.create_table_sync()
        event = {
            "rawPath": "/first-chat",
            "headers": {"idempotency-key": "question-1"},
            "requestContext": {
                "authorizer": {"iam": {"userId": "alice"}},
                "http": {"method": "POST"},
                "requestId": "request-1",
            },
            "body": json.dumps({"text": "Hello!"}),
        }
        for _ in range(2):
            print(handler(event, None)["body"])


if __name__ == "__main__":
    main()
