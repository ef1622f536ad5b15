//! Tokenisers from tokenizer.json and from GGUF vocabularies: encode, decode, specials.
