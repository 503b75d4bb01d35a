"""Tokenizers: round trips, what transformers makes of the saved folder, and answers' masks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.train.data import bpe
from offramp.train.data.tokenizer import (
    END_TEXT,
    ByteTokenizer,
    Tokenizer,
    byte_letters,
    open_tokenizer,
)
from offramp.train.job import TokenizerSection

TEXTS = [
    "def area(radius):\n    return 3.14 * radius ** 2\n" * 4,
    "Größe, naïve café — 你好，世界 🙂\r\n\ttab\x00zero  spaces   ",
    "the theory of the thing that they thought\n\n\n" * 9,
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote Faust?"},
    {"role": "assistant", "content": "Goethe."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "1808"},
]


def texts() -> Iterator[str]:
    return iter(TEXTS)


@pytest.fixture(params=["byte", "bpe", "folder"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param != "byte":
        pytest.importorskip("tokenizers")
    if request.param != "folder":
        return open_tokenizer(TokenizerSection(request.param, 300), "", texts, tmp_path)
    pytest.importorskip("transformers")
    open_tokenizer(TokenizerSection("bpe", 300), "", texts, tmp_path).save(tmp_path / "saved")
    return open_tokenizer(TokenizerSection("folder"), str(tmp_path / "saved"), texts, tmp_path)


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_decode_what_is_no_text() -> None:
    assert ByteTokenizer().decode([72, 256, 105, 300, 0xC3]) == f"H{END_TEXT}i\ufffd\ufffd"


def test_each_byte_has_its_own_letter() -> None:
    library = pytest.importorskip("tokenizers")
    assert sorted(byte_letters()) == sorted(library.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("text", TEXTS)
def test_every_kind_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary
    assert tokenizer.decode(ids) == text
    assert tokenizer.end not in ids
    assert 0 <= tokenizer.end < tokenizer.vocabulary
    assert [one.tolist() for one in tokenizer.encode_batch([text, "", text])] == [
        ids.tolist(),
        [],
        ids.tolist(),
    ]


def test_transformers_loads_what_is_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = load(tokenizer, tmp_path / "out")
    assert len(loaded) == tokenizer.vocabulary
    assert loaded.eos_token_id == tokenizer.end
    for text in [*TEXTS, " leading", "a .b , c ' d"]:
        ids = tokenizer.encode(text).tolist()
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text
    invalid = [*tokenizer.encode("é").tolist()[:1], tokenizer.end]
    assert loaded.decode(invalid) == tokenizer.decode(invalid)


def load(tokenizer: Tokenizer, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def test_plain_chat_is_the_saved_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids, mask = tokenizer.chat(TALK)
    loaded = load(tokenizer, tmp_path / "out")
    assert loaded.apply_chat_template(TALK, return_dict=False) == ids.tolist()
    assert tokenizer.decode(ids[mask == 1]) == f"Goethe.{END_TEXT}1808{END_TEXT}"
    asked, _ = tokenizer.chat(TALK[:3])
    prompt = loaded.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=False)
    assert asked.tolist()[: len(prompt)] == prompt


def test_text_cannot_end_itself() -> None:
    assert ByteTokenizer().encode(END_TEXT).max() < 256


def test_learned_text_cannot_end_itself(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = bpe.learn(300, texts, tmp_path)
    assert tokenizer.end not in tokenizer.encode(f"a{END_TEXT}b")
    assert tokenizer.decode(tokenizer.encode(f"a{END_TEXT}b")) == f"a{END_TEXT}b"


def test_bpe_is_the_same_in_every_process(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    code = (
        "import sys; from pathlib import Path; from offramp.train.data.bpe import learn\n"
        f"t = learn(300, lambda: iter({TEXTS!r}), Path(sys.argv[1])); print(t.fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in ("one", "two")
    }
    here = bpe.learn(300, texts, tmp_path / "three")
    assert found == {here.fingerprint + "\n"}
    assert here.vocabulary == 300
    assert here.fingerprint != bpe.learn(290, texts, tmp_path / "three").fingerprint


def test_bpe_is_learned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    first = bpe.learn(300, texts, tmp_path)
    (kept,) = tmp_path.glob("bpe-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(bpe, "_train", lambda *_: pytest.fail("learned again"))
        assert bpe.learn(300, texts, tmp_path).fingerprint == first.fingerprint
    kept.write_text(kept.read_text()[:100])
    assert bpe.learn(300, texts, tmp_path).fingerprint == first.fingerprint
    assert bpe.learn(300, lambda: iter(["other"]), tmp_path).fingerprint != first.fingerprint


THINKING = (  # earlier answers lose their reasoning once a later question comes
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}(thought)\n{% endif %}"
    "{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ANSWERS_LAST = "{% for m in messages | reverse %}{{ m.role }} {{ m.content }}\n{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}\n{% endfor %}"
)


def with_template(folder: Path, template: str | None) -> Tokenizer:
    pytest.importorskip("transformers")
    ByteTokenizer().save(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["chat_template"] = template
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return open_tokenizer(TokenizerSection("folder", folder=str(folder)), "", texts, folder)


def test_templates_that_drop_reasoning_are_followed(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, THINKING)
    ids, mask = tokenizer.chat(TALK)
    assert tokenizer.decode(ids).endswith("<|assistant|>(thought)\n1808<|endoftext|>\n")
    assert (
        tokenizer.decode(ids[mask == 1]) == "Goethe.<|endoftext|>\n(thought)\n1808<|endoftext|>\n"
    )


def test_a_folder_without_template_takes_the_plain_one(tmp_path: Path) -> None:
    ids, mask = with_template(tmp_path, None).chat(TALK)
    plain_ids, plain_mask = ByteTokenizer().chat(TALK)
    assert (ids.tolist(), mask.tolist()) == (plain_ids.tolist(), plain_mask.tolist())


@pytest.mark.parametrize(
    ("template", "reason"),
    [(ANSWERS_LAST, "does not keep an answer"), (NO_SYSTEM, "refuses it: no system")],
)
def test_templates_that_cannot_be_masked_are_named(
    tmp_path: Path, template: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        with_template(tmp_path, template).chat(TALK)


def test_fingerprints_tell_tokenizers_apart(tmp_path: Path) -> None:
    one = with_template(tmp_path / "a", THINKING)
    same = with_template(tmp_path / "b", THINKING)
    other = with_template(tmp_path / "c", None)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, ByteTokenizer.fingerprint}) == 3


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    section = TokenizerSection("folder")
    with pytest.raises(UsageError, match="neither tokenizer"):
        open_tokenizer(section, "", texts, tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        open_tokenizer(section, str(tmp_path / "absent"), texts, tmp_path)
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match="no tokenizer that transformers can load") as caught:
        open_tokenizer(section, str(tmp_path), texts, tmp_path)
    assert "\n" not in str(caught.value)
    ByteTokenizer().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="no end-of-text token"):
        open_tokenizer(section, str(tmp_path), texts, tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"needs the tokenizers package: pip install 'offramp\[t"):
        open_tokenizer(TokenizerSection("bpe"), "", texts, tmp_path)
