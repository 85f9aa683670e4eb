"""Text as a condition of any family: tokenizers, encoders, and what networks see of a text.

config.py       `TextConfig`, the `text:` part of a model: encoders, dropout
condition.py    `TextCondition`: from the captions of a batch to the inputs of a network
network.py      `TextConditioned`: a network together with the encoders that are trained with it
states.py       what encoders make of texts, and how several are combined
bpe.py          a byte-level BPE tokenizer, learnt from the data set's captions
encoders/       one file a kind of encoder
"""
