"""Co-rewarding on stock TRL: rewards, teacher, trainer, answers, lab and diagnostics behind the five notebooks."""

__version__ = "0.1.0"
