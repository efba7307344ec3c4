"""The tiny model of the tests: a random XLM-R checkpoint and the bundle that mexma-export writes of it.

tests/tiny_bundle is kept in the repository, so that the runtime's tests need no torch and wait for no export. Where the
exporter has changed what it writes, tests/export/test_tiny_bundle.py fails; make the bundle again, and commit it, with

    python tests/tiny.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

# Our own sentences, in ten scripts: enough text for a tokenizer of some hundred pieces.
SENTENCES = [
    ("eng", "Hello world, the cat is sleeping on the warm stone."),
    ("eng", "Where can I buy a ticket for the evening train?"),
    ("eng", "The children were playing near the river all afternoon."),
    ("fra", "Bonjour le monde, le chat dort sur la pierre chaude."),
    ("fra", "Où puis-je acheter un billet pour le train du soir ?"),
    ("deu", "Hallo Welt, die Katze schläft auf dem warmen Stein."),
    ("deu", "Die Kinder spielten den ganzen Nachmittag am Fluss."),
    ("spa", "¿Dónde puedo comprar un billete para el tren de la noche?"),
    ("tur", "Çocuklar bütün öğleden sonra ırmağın yanında oynuyordu."),
    ("rus", "Привет, мир, кошка спит на тёплом камне."),
    ("rus", "Где можно купить билет на вечерний поезд?"),
    ("ell", "Γεια σου κόσμε, η γάτα κοιμάται πάνω στη ζεστή πέτρα."),
    ("ara", "مرحبا بالعالم، القطة نائمة على الحجر الدافئ."),
    ("heb", "שלום עולם, החתולה ישנה על האבן החמה."),
    ("hin", "नमस्ते दुनिया, बिल्ली गरम पत्थर पर सो रही है।"),
    ("jpn", "こんにちは世界、猫は暖かい石の上で眠っています。"),
    ("cmn", "你好，世界，猫在温暖的石头上睡觉。"),
    ("kor", "안녕하세요 세상, 고양이가 따뜻한 돌 위에서 자고 있어요."),
    ("tha", "สวัสดีชาวโลก แมวกำลังนอนอยู่บนหินอุ่น"),
    ("eng", "Please close the window before you leave; it may rain tonight."),
]


# Unigram with XLM-R's special ids and template, trained once on SENTENCES and kept: tokenizers' trainer gives other scores at
# every call, and so sentences to other pieces, with some of which the int8 graph of a random model fails its parity gate.
TOKENIZER = Path(__file__).parent / "tiny_tokenizer.json"
BUNDLE = Path(__file__).parent / "tiny_bundle"


def make_checkpoint(folder: Path) -> None:
    """Write a random XLM-R checkpoint: 3 layers of 32, 4 heads, 514 positions, 322 pieces; always the same one."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder.mkdir()
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    config = XLMRobertaConfig(
        vocab_size=322,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        layer_norm_eps=1e-5,
        initializer_range=0.3,  # the usual 0.02 makes all sentence vectors nearly parallel
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = XLMRobertaModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", '
        '"sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>", '
        '"model_max_length": 512}\n',
        encoding="utf-8",
    )


def make_bundle(checkpoint: Path, folder: Path) -> None:
    """Export a checkpoint (fp32 and int8, with weights), gated on SENTENCES."""
    from mexma_export import Sentence, export_bundle

    export_bundle(checkpoint, folder, name="tiny", sentences=[Sentence(lang=a, text=b) for a, b in SENTENCES])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        make_checkpoint(Path(scratch) / "tiny")
        make_bundle(Path(scratch) / "tiny", Path(scratch) / "bundle")
        if BUNDLE.exists():
            shutil.rmtree(BUNDLE)
        shutil.copytree(Path(scratch) / "bundle", BUNDLE)
