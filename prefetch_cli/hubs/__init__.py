"""A name in a hub -> where its local cache holds it: Hugging Face, ModelScope, Ollama.

Read-only, without a network. Nothing here looks at what a checkpoint consists of.
"""
