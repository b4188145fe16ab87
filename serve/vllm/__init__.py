"""The language model of explanations and completions run by vLLM, on nodes with GPUs. Not run here: there is no GPU."""
