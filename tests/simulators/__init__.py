"""Provider simulators: real wire protocols on loopback, each with the provider's own bill.

They know nothing of voicecost, so that its ledger can be held against them. See README.md.
"""

from .bill import Bill, BillRow
from .deepgram import DeepgramSimulator
from .openai_chat import OpenAISimulator
from .script import LONG_ANSWER, Fault, Reply, ToolCall

__all__ = [
    "LONG_ANSWER",
    "Bill",
    "BillRow",
    "DeepgramSimulator",
    "Fault",
    "OpenAISimulator",
    "Reply",
    "ToolCall",
]
