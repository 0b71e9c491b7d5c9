"""Generated text into content, reasoning and calls of tools. However the text is cut, the same comes out."""
