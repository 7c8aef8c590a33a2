"""A conformance kit for safety gateways: one forbidden sentence, put in every place that a model reads or a client receives.

It runs against any server that speaks OpenAI's chat completions and can be pointed at a model of ours:
``python -m tests.conformance --help``.
"""
