"""Values to what is stored and back: codecs, pure, of which only that of LangChain's messages imports LangChain."""
