"""Token ids: truncation, token types, tokenizers without padding, and the copy on disk."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from finetune.data import encode_split, padding_id
from finetune.data.encoding.encoded_cache import cache_key
from finetune.data.task_data import Split
from finetune.errors import DataError

WORDS = [f"word{i}" for i in range(200)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


def bert_like(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]",
                                   model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def decoder_like():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, **{w: i + 2 for i, w in enumerate(WORDS)}}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>",
                                   model_input_names=["input_ids", "attention_mask"])


def split_of(*texts):
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    return Split(rows, np.zeros(len(rows), dtype=np.int64), np.array([f"train:{i}" for i in range(len(rows))]))


def words(start, n):
    return " ".join(WORDS[start : start + n])


def test_pairs_have_token_types_and_are_cut_longest_first():
    encoded = encode_split(split_of((words(0, 20), words(50, 3)), (words(0, 2), words(50, 3))), bert_like(), 12)
    assert encoded.lengths.tolist() == [12, 8]
    first = encoded.input_ids[0].tolist()
    assert first == [1, *range(4, 10), 2, 54, 55, 56, 2]
    assert encoded.token_type_ids[0].tolist() == [0] * 8 + [1] * 4
    assert encoded.truncated_share == 0.5
    assert encoded.input_ids[0].dtype == np.int32


def test_a_row_that_just_fits_is_not_counted_as_truncated():
    encoded = encode_split(split_of(words(0, 10), words(0, 11), words(0, 9)), bert_like(), 12)
    assert encoded.lengths.tolist() == [12, 12, 11]
    assert encoded.truncated_share == pytest.approx(1 / 3)


def test_a_decoder_has_no_token_types_and_pads_with_its_end():
    tokenizer = decoder_like()
    encoded = encode_split(split_of("word1 word2", "word3"), tokenizer, 8)
    assert encoded.token_type_ids is None
    assert tokenizer.pad_token_id is None
    assert padding_id(tokenizer) == tokenizer.eos_token_id
    assert padding_id(bert_like()) == 0


def test_a_text_without_tokens_is_named():
    with pytest.raises(DataError, match="row train:1 has no tokens"):
        encode_split(split_of("word1", "\u200b \x00"), decoder_like_dropping_unknown(), 8)


def decoder_like_dropping_unknown():
    from tokenizers import normalizers

    tokenizer = decoder_like()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(__import__("tokenizers").Regex("[^a-z0-9 ]"), "")
    return tokenizer


def test_an_empty_split_encodes_to_nothing():
    encoded = encode_split(split_of(), bert_like(), 8)
    assert (len(encoded), encoded.truncated_share) == (0, 0.0)


def test_the_fingerprint_names_ids_and_token_types():
    single = encode_split(split_of("word1 word2"), bert_like(), 8)
    assert single.fingerprint == encode_split(split_of("word1  word2"), bert_like(), 8).fingerprint
    others = [encode_split(s, bert_like(), 8).fingerprint for s in (
        split_of("word1 word3"), split_of("word1", "word2"), split_of(("word1", "word2")))]
    assert len({single.fingerprint, *others}) == 4


def large(n=600, start=0):
    return split_of(*[f"{words((start + i) % 150, 5)}" for i in range(n)])


def same(a, b):
    assert a.fingerprint == b.fingerprint
    assert all(np.array_equal(x, y) for x, y in zip(a.input_ids, b.input_ids, strict=True))
    assert a.truncated_share == b.truncated_share
    return True


def test_a_kept_split_is_read_and_not_tokenized_again(cache):
    first = encode_split(large(), bert_like(), 6)
    assert len(list(cache.glob("*.npz"))) == 1
    tokenizer = bert_like()
    tokenizer._batch_encode_plus = tokenizer._encode_plus = None  # would fail if it were called
    assert same(encode_split(large(), tokenizer, 6), first)
    assert first.truncated_share == 1.0


def test_few_rows_are_not_kept(cache):
    encode_split(large(20), bert_like(), 6)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [
    lambda b: b[:-20], lambda b: b"", lambda b: b[:100] + b"x" + b[101:], lambda b: b"0" * 99,
])
def test_a_damaged_entry_is_built_again(cache, damage):
    first = encode_split(large(), bert_like(), 8)
    (entry,) = cache.glob("*.npz")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert same(encode_split(large(), bert_like(), 8), first)
    assert entry.read_bytes() == whole


def test_the_key_names_every_input():
    texts = large(5).texts
    base = cache_key(texts, bert_like(), 8)
    assert base == cache_key(list(texts), bert_like(), 8)
    used = bert_like()
    used(["word1 word2 word3"], padding="max_length", truncation=True, max_length=7)
    assert cache_key(texts, used, 8) == base
    left = bert_like()
    left.truncation_side = "left"
    keys = [base, cache_key(texts, bert_like(), 9), cache_key(texts, decoder_like(), 8), cache_key(texts, left, 8),
            cache_key(texts, bert_like(WORDS[::-1]), 8), cache_key(texts[:4], bert_like(), 8),
            cache_key([(" ".join(row),) for row in zip(*texts, strict=True)], bert_like(), 8)]
    assert len(set(keys)) == len(keys)


def test_a_tokenizer_that_hides_its_rules_is_not_cached():
    assert cache_key(large(5).texts, object(), 8) is None


def test_where_nothing_can_be_written_encoding_works_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "below"))
    assert len(encode_split(large(), bert_like(), 8)) == 600


def _build_slowly(path, index, queue):
    from finetune.data.encoding.encoded_cache import cached

    os.environ["FINETUNE_CACHE"] = path

    def build():
        queue.put(index)
        time.sleep(0.3)
        return {"a": np.arange(3)}

    assert cached("key", build)["a"].tolist() == [0, 1, 2]


def test_two_processes_build_an_entry_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_build_slowly, args=(str(tmp_path), i, queue)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert queue.get(timeout=5) in (0, 1, 2)
    assert queue.empty()
