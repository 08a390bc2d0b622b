"""From records to an answer: how many layers can be frozen, how sure are we, and what does it save?

Reads what `finetune.results` wrote and nothing else; runs without torch. The way of one number:
load (records) → protocol (which setting, which seeds) → curves (arrays → stats) → verdict → summary, plots, report.
"""
