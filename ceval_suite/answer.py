"""Reply → prediction → Record."""

from __future__ import annotations

from ceval_suite.prompt import Prompt
from ceval_suite.schema import Record, Reply


def record(prompt: Prompt, reply: Reply, match: str) -> Record:
    """Judge one reply.

    The prediction is the label with the highest score, the first in label order on an exact tie
    (as every official script does), and the tie is recorded. Raw float32 logits decide when every
    continuation is one token, else summed log-probabilities. `match` is the template's: `equal`
    wants the one gold label, `any` any of several (lm-eval's lenient rule). A reply without scores
    (none of the labels was among what a server returned) is unanswered: no prediction, not correct.
    """
    item = prompt.item
    order = sorted(range(len(item.labels)), key=lambda i: item.labels[i])
    scores = reply.logits or reply.logprobs
    prediction: list[str] = []
    tied = False
    if scores:
        best = max(order, key=lambda i: scores[i])
        tied = sum(scores[i] == scores[best] for i in order) > 1
        prediction = [item.labels[best]]
    correct = None
    if item.answer and match == "any":
        correct = any(label in item.answer for label in prediction)
    elif item.answer:
        correct = prediction == [*item.answer]
    return Record(
        id=item.id,
        subject=item.subject,
        answer=list(item.answer),
        prediction=prediction,
        correct=correct,
        score=None if correct is None else float(correct),
        logits={item.labels[i]: reply.logits[i] for i in order} if reply.logits else {},
        logprobs={item.labels[i]: reply.logprobs[i] for i in order} if reply.logprobs else {},
        choice_mass=reply.choice_mass,
        tie=tied,
        text=None,
        shots=prompt.shots,
        prompt_tokens=reply.num_tokens,
        prompt_sha256=prompt.sha256,
        bounded=[item.labels[i] for i in order if i in reply.bounded],
    )
