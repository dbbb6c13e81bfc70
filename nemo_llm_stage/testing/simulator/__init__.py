"""A simulated inference server that speaks the OpenAI protocol, with faults on request."""
