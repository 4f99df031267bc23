"""The metrics of quality, in the order of the tables."""

from __future__ import annotations

from harness.base.numbers import places, significant
from harness.records.metric import Metric, Row, Rule, Words

_TEXT = ("text", "windows", "window_tokens")
_AGREEMENT = ("runner", "route", "windows", "window_tokens")
_TASK = (
    *("task", "task_metric", "documents", "through"),
    *("num_fewshot", "chat_template", "system_instruction", "generation"),
)


QUALITY: tuple[Metric, ...] = (
    Metric(
        "perplexity",
        "1",
        "lower",
        "transformers",
        "exp of the mean negative log-likelihood a token over fixed windows of real text, teacher-forced; each "
        "window is begun as the model's tokenizer begins every text (with its BOS), and all tokens but its first "
        "count.",
        version=2,
        parameters=_TEXT,
        rule=Rule("ratio", 0.01, True),
        rows=(Row("quality", "perplexity", Words.DIFFERENCE),),
    ),
    Metric(
        "kl_divergence",
        "nats",
        "lower",
        "transformers",
        "Mean over tokens of KL(baseline || recipe) of the next-token distributions over the windows of perplexity.",
        version=2,
        parameters=_TEXT,
        rule=Rule("difference", 0.001, True, of_old=0.1),
        rows=(Row("quality", "KL divergence (nats)", Words.ALONE, number=places(4)),),
    ),
    Metric(
        "top1_agreement",
        "fraction",
        "higher",
        "transformers",
        "Share of positions where both models' most likely token is the same, over the windows of perplexity.",
        version=2,
        parameters=_TEXT,
        rule=Rule("difference", 0.02, False),
        rows=(Row("quality", "top-1 agreement", Words.ALONE, number=places(3)),),
    ),
    Metric(
        "token_flips",
        "fraction",
        "lower",
        "transformers",
        "Share of positions where exactly one of the two models predicts the text's next token. Source: Dutta et al., "
        "Accuracy is Not All You Need, 2024 (flips), applied to next-token prediction.",
        version=2,
        parameters=_TEXT,
        rule=Rule("difference", 0.01, False),
        rows=(Row("quality", "token flips", Words.ALONE, number=places(4)),),
    ),
    Metric(
        "served_kl",
        "nats",
        "lower",
        "engine",
        "Mean over tokens of KL(Transformers || engine) of the next-token distributions over windows of the same "
        "text, begun as the model's tokenizer begins every text, the same recipe in both: the lower bound that the "
        "likeliest 20 tokens of both give, where a token that a side does not list is at most as likely as the least "
        "likely one that it does.",
        version=3,
        parameters=_TEXT,
        rows=(Row("quality", "KL(Transformers || engine) (nats)", Words.ALONE, number=significant),),
    ),
    Metric(
        "served_top1",
        "fraction",
        "higher",
        "engine",
        "Share of positions where the engine's and Transformers' most likely token is the same, over the windows of "
        "served_kl.",
        version=2,
        parameters=_TEXT,
        rows=(Row("quality", "top-1 agreement with Transformers", Words.ALONE, number=places(3)),),
    ),
    Metric(
        "program_perplexity",
        "1",
        "lower",
        "export",
        "Perplexity of the program, as perplexity is of a model.",
        version=2,
        parameters=_AGREEMENT,
        rows=(Row("quality", "perplexity of the program", Words.DIFFERENCE),),
    ),
    Metric(
        "program_perplexity_change",
        "fraction",
        "lower",
        "export",
        "Absolute relative difference of the program's perplexity from the eager model's over the same text.",
        version=2,
        parameters=_AGREEMENT,
        rows=(Row("quality", "its change from eager", Words.ALONE, number=places(4)),),
    ),
    Metric(
        "program_kl",
        "nats",
        "lower",
        "export",
        "Mean over tokens of KL(eager || program), the eager model being the same checkpoint in Transformers and "
        "float32, over the same real text, begun as the model's tokenizer begins every text.",
        version=2,
        parameters=_AGREEMENT,
        rows=(Row("quality", "KL(eager || program) (nats)", Words.ALONE, number=significant),),
    ),
    Metric(
        "program_top1",
        "fraction",
        "higher",
        "export",
        "Share of positions where the program's and the eager model's most likely token is the same.",
        version=2,
        parameters=_AGREEMENT,
        rows=(Row("quality", "top-1 agreement with eager", Words.ALONE, number=places(4)),),
    ),
    Metric(
        "logit_difference",
        "1",
        "lower",
        "export",
        "Largest absolute difference of any logit from the eager model's.",
        version=2,
        parameters=_AGREEMENT,
        rows=(Row("quality", "largest difference of a logit", Words.ALONE, number=significant),),
    ),
    Metric(
        "accuracy",
        "fraction",
        "higher",
        "transformers",
        "The task's own metric as lm-evaluation-harness reports it.",
        parameters=_TASK,
        rule=Rule("documents", 0.02, True),
        rows=(Row("quality", "", Words.DIFFERENCE, number=places(3), lead=("task", "task_metric")),),
    ),
    Metric(
        "answer_margin",
        "nats",
        "higher",
        "transformers",
        "Log-likelihood of a multiple-choice document's right answer less that of the likeliest wrong one, not "
        "normalised by length; the mean over documents. Its rule's margin is a share of answers.",
        parameters=_TASK,
        rule=Rule("answers", 0.001, True),
        rows=(Row("quality", "answer margin", Words.DIFFERENCE, number=places(3), lead=("task",)),),
    ),
    Metric(
        "task_perplexity",
        "1",
        "lower",
        "transformers",
        "The task's own perplexity as lm-evaluation-harness reports it (lambada_openai).",
        parameters=_TASK,
        rule=Rule("likelihood", 0.02, False),
        rows=(Row("quality", "perplexity", Words.DIFFERENCE, lead=("task",)),),
    ),
    Metric(
        "answer_flips",
        "fraction",
        "lower",
        "transformers",
        "Share of documents answered correctly by exactly one of baseline and recipe. Source: Dutta et al., 2024.",
        parameters=_TASK,
        rows=(Row("quality", "answer flips", Words.ALONE, number=places(4), lead=("task",)),),
    ),
)
