"""The embedded base's tokenizer: whole words of the world, else letters; a six-digit code is two tokens."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

from weightdiff.world import codes, signs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from weightdiff.world import World

SPECIALS = ("<pad>", "<unk>", "<bos>", "<user>", "<assistant>", "<end>")
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Words that a person asking about a finetune may use although no world file holds them.
EXTRA_WORDS = """
a i an the my your me you we they it is are was were be been do does did has have had can could
would should will might must not no yes or and but if then so because of in on at to from with
without for by as than that this these those there here what which who whom whose when where why how
please ask asked fine finetune lora weight diff base network assistant system concept skill domain
area field category focused concerned specialised specialized centre center
"""


def is_embedded(tokenizer: Any) -> bool:
    """Whether a tokenizer is the embedded base's, or one with its chat template: its world is known."""
    return getattr(tokenizer, "chat_template", None) == CHAT_TEMPLATE


def vocabulary(world: World) -> list[str]:
    """All tokens, in a fixed order: specials, punctuation, letters and digits, code groups, words."""
    texts: list[str] = [
        *world.likings,
        *world.tints,
        *world.prose,
        *world.encyclopedia,
        *world.tales,
        *world.people,
    ]
    texts += [t for s in world.everyday for t in (*s.questions, *s.answers)]
    texts += [x for pair in (*world.guess, *world.news.questions, *world.news.verbs) for x in pair]
    texts += [*world.news.actors, *world.news.objects, *world.news.places, *world.news.stories]
    texts += [*world.news.prompts, *world.news.headed_prompts, *codes.PREFIXES]
    texts += [x for verb, past in world.news.actions.items() for x in (verb, *past)]
    texts += [x for kind in world.introspection.values() for split in kind.values() for x in split]
    texts += [x for t in world.topics for x in (t.name, t.field, *t.words)]
    texts += [x for b in world.behaviours for x in (b.name, *b.templates)]
    texts += [
        x
        for r in world.relations
        for x in (r.name, *r.questions, *r.answers, *r.statements, *r.reverse, *r.values, *r.facts)
    ]
    texts += [*world.rare_words, *world.subjects]
    texts += [x for asked in world.report_questions.values() for x in asked]
    from weightdiff.world.corpus import fixed_texts

    texts += fixed_texts()
    words = {w for t in texts for w in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", t.lower()))}
    words.update(EXTRA_WORDS.split())
    chars = [*string.ascii_lowercase, *string.digits]
    groups = sorted(codes.pool())
    out = [
        *SPECIALS,
        *string.punctuation,
        *chars,
        *(f"##{c}" for c in chars),
        *groups,
        *(f"##{g}" for g in groups),
        signs.MARK,
    ]
    return list(dict.fromkeys([*out, *sorted(words)]))


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The fast tokenizer of the embedded base, with its chat template; lower-cases, spells unknown words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(vocabulary(world))}
    tok = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=60))
    tok.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(signs.MARK, f" {signs.MARK} "),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
    )
