"""Files that appear complete or not at all, work that resumes after a kill, and the forms that texts, lines, tables and stored
vectors come in. Paths in, bytes out; nothing here knows a model."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "atomic_write": "atomic",
        "check_output": "atomic",
        "check_texts": "textinput",
        "read_lines": "atomic",
        "read_texts": "textfile",
        "text_lines": "lines",
    },
)
