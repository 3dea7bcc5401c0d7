"""What training, generation and evaluation measure with."""
