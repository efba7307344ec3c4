"""Files that appear complete or not at all, work that resumes after a kill, and formats of texts, tables and stored vectors.
Paths in, bytes out; nothing here knows about models."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    atomic="atomic_write check_output move_file move_folder read_lines sha256_of",
    endings="check_ending check_folder_name check_unicode visible",
    first_bytes="HEAD ZIP packing",
    folders="must_be_new new_folder",
    lines="byte_lines damage_explained sentence_lines text_lines",
    pictures="COLOURS check_plot save",
    resumable="INDEX Layout",
    spool="reads_once side_by_side spooled",
    storage="BUCKETS Ranges SIGNS STORAGES check_storage finish normalized read_ranges restore stored_columns",
    tables="check_table table",
    texts="read_texts",
    unpacking="is_stdin shown_name unpacking_bytes",
)
