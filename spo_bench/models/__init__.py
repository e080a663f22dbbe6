"""Policies, tokenizers, adapters and reward models."""
