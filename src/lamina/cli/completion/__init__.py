"""Shell completion: the parsers as plain words, and one script maker a shell."""
