"""Tests of what happens when requests fail."""

from __future__ import annotations

import pytest
from botocore.config import Config

from chathistory_async import AccessDeniedError, ThrottledError
from chathistory_async.testing import Fault, FaultProxy, StoreFactory


@pytest.mark.parametrize(
    "fault", [Fault.LOST_RESPONSE, Fault.ERROR_500, Fault.THROTTLED, Fault.DELAY, Fault.LATE_REQUEST], ids=str
)
def test_a_message_is_stored_once(
    chathistory_store_factory: StoreFactory, chathistory_proxy: FaultProxy, fault: Fault
) -> None:
    history = chathistory_store_factory(endpoint_url=chathistory_proxy.url).session("alice")
    chathistory_proxy.late_seconds = 0.1
    chathistory_proxy.script(fault, operation="PutItem")
    history.add_user_message("Hello!")
    chathistory_proxy.wait_for_late_requests()
    assert chathistory_proxy.operations().count("PutItem") == (1 if fault is Fault.DELAY else 2)
    assert len(history.messages) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(("fault", "error"), [(Fault.CAPACITY, ThrottledError), (Fault.DENIED, AccessDeniedError)])
async def test_an_engine_that_always_fails(
    chathistory_store_factory: StoreFactory, chathistory_proxy: FaultProxy, fault: Fault, error: type[Exception]
) -> None:
    once = Config(retries={"total_max_attempts": 1})
    store = chathistory_store_factory(endpoint_url=chathistory_proxy.url, config=once)
    chathistory_proxy.schedule = lambda seen: fault
    with pytest.raises(error):
        await store.session("alice").aget_messages()
