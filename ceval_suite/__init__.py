"""Evaluation of Chinese and English LLM benchmarks by first-token logits."""

from __future__ import annotations

__version__ = "0.1.0"
