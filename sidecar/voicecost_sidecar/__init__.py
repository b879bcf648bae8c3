"""voicecost."""
