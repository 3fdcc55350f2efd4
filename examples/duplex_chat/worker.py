"""One call is one conversation: its state is the handler's local variables, and both sides may speak at once.

Like a voice agent, the worker stops in mid-sentence when the caller speaks up. When the caller hangs up, it
finishes its sentence, and with it the call.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator

from dynamo.runtime import DistributedRuntime, RequestStream, dynamo_worker

PAUSE_S = float(sys.argv[1]) if sys.argv[1:] else 0.25  # between two words

# After J. Weizenbaum, "ELIZA", Communications of the ACM 9(1), 1966; the first pattern that fits answers.
SCRIPT = [
    (r".*\bmy (\w+)", "Tell me more about your {0}."),
    (r".*\bi(?: am|'m) (.+)", "How long have you been {0}?"),
    (r".*\bbecause\b", "Is that the only reason that comes to your mind?"),
    (r"(.*)", "You say {0}, and I wonder what that means to you."),
]


def answer(remark: str) -> str:
    remark = remark.strip(" .!?\n").lower()
    found, reply = next((found, reply) for pattern, reply in SCRIPT if (found := re.match(pattern, remark)))
    return reply.format(*found.groups())


async def chat(remarks: RequestStream[str]) -> AsyncIterator[str]:
    remark = await anext(remarks, None)
    while remark is not None:
        words, remark = answer(remark).split(), None
        for word in words:
            yield f"{word} "
            try:  # the pause is the time to listen: a read that times out loses nothing
                remark = await asyncio.wait_for(anext(remarks), PAUSE_S)
            except (TimeoutError, StopAsyncIteration):
                continue
            yield "--"
            break
        yield "\n"
        remark = remark or await anext(remarks, None)


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    await runtime.endpoint("demo.eliza.chat").serve_endpoint(chat)


if __name__ == "__main__":
    asyncio.run(main())
