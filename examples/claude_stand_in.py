#!/usr/bin/env python3
"""Plays the part of Claude Code for the example: needs no key and no network, and answers which turn it is."""

import json
import os
import re
import sys
import uuid
from pathlib import Path

TIME = "2026-11-30T12:00:00.000Z"


def say(**message: object) -> None:
    """Send a message to the SDK."""
    print(json.dumps(message), flush=True)


def entry(kind: str, text: str) -> dict[str, object]:
    """Return a line of a transcript."""
    message = {"role": kind, "content": text}
    return {"type": kind, "uuid": str(uuid.uuid4()), "timestamp": TIME, "sessionId": session_id, "message": message}


project = Path(os.environ["CLAUDE_CONFIG_DIR"], "projects", re.sub(r"[^a-zA-Z0-9]", "-", str(Path.cwd().resolve())))
resumed = next((option.removeprefix("--resume=") for option in sys.argv if option.startswith("--resume=")), None)
session_id = resumed or str(uuid.uuid4())
transcript = project / f"{session_id}.jsonl"
turns = transcript.read_text().count('"type":"user"') if resumed else 0

for line in sys.stdin:
    request = json.loads(line)
    if request["type"] == "control_request":
        answer = {"subtype": "success", "request_id": request["request_id"], "response": {}}
        say(type="control_response", response=answer)
    elif request["type"] == "user":
        turns += 1
        prompt, text = request["message"]["content"], f"That was turn {turns}."
        lines = [entry("user", prompt), entry("assistant", text)]
        say(type="transcript_mirror", filePath=str(transcript), entries=lines)
        subagent = project / session_id / "subagents" / "agent-1.jsonl"
        say(type="transcript_mirror", filePath=str(subagent), entries=[entry("user", "Look it up.")])
        content = [{"type": "text", "text": text}]
        say(type="assistant", message={"role": "assistant", "model": "none", "content": content}, session_id=session_id)
        counts = {"duration_ms": 1, "duration_api_ms": 1, "num_turns": 1, "is_error": False}
        say(type="result", subtype="success", session_id=session_id, result=text, **counts)
