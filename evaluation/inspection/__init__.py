"""`structkv inspect`: runs one prompt as a prefill worker does, and draws what was kept of it.

`prompt` gives every token its part of the text, `recording` looks on while the engine runs, `codecs` counts bytes;
`raw` has the numbers, `page` the HTML and `picture` the PNG. `command` puts them together.
"""
