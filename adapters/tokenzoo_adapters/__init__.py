"""One file per family of models. None of them imports the library that it adapts."""
