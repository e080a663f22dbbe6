"""Summaries of posts and articles, from TL;DR comparisons or any pairs of summaries."""

from __future__ import annotations

from ._pairs import PairTask


class Summarization(PairTask):
    """A short summary of a text; the preferred one gives its main points faithfully."""

    name = "summarization"
    summary = "a short summary of a post or article (TL;DR comparisons or prompt/chosen/rejected)"
    metrics = ("rouge_l",)
    judge_prompt = """\
Two summaries of the same text are given. Decide which is the better one.

A good summary gives the points that matter most for somebody who will not read the text, says nothing that the text does not
say, leaves out side matters, and can be understood alone. Between two that do this equally well the shorter is better. The order
of the two summaries is no reason.

Text:
{prompt}

Summary A:
{a}

Summary B:
{b}
"""
