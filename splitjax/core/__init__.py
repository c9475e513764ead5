"""The nouns: stage, cut, codec, link, factor, split, algorithm."""
