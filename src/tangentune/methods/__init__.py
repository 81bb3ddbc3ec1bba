"""The methods of four papers, one package each, and the fine-tuning they are compared with."""
