"""UMT5 text encoder and its tokenizer."""
