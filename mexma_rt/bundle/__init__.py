"""A model folder: its manifest and verified files, its golden vectors, the names of its graphs' inputs and outputs, and the
published models that can be converted into one. Nothing here computes a vector."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    change="check_writable write_thresholds",
    golden="Golden LEAST_COSINE",
    graphs="ATTENTION_MASK BOS EOS INPUTS INPUT_IDS OUTPUTS PAD SENTENCE TOKENS UNK XLMR SpecialIds",
    known="INSTALL KNOWN bundle_name export_command find_known",
    manifest="Bundle FileEntry MANIFEST Manifest PARITY POOLINGS TOKENIZER WEIGHTS hash_of_files manifest_text",
    onnxfile="Tensor fields initialisers mapped read_tensor",
    opening="DEFAULT_MODEL MODELS bundled_models open_bundle read_manifest verify_files",
    rows="LOWEST_GELU TINY row_codes",
    safetensors_folder="encoder_shapes write_checkpoint write_safetensors",
    structure="DATA GRAPH STRUCTURES buildable built_graph cache_folder runnable write_built",
    thresholds="Thresholds",
    weights="HOLDERS coded_rows holder weights_of",
)
