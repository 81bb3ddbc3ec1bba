"""What the words of the field mean, each in one plain sentence: the pages of the library and the site take them here.

`python docs/make_glossary.py` writes docs/glossary.md from this table.
"""

from __future__ import annotations

from typing import final

from markupsafe import Markup

TERMS = {
    "accuracy": "The share of pictures that are called by their label.",
    "average precision": "How high the pictures with a label stand when all are ranked by their score for it: 1 is "
    "all of them first.",
    "backbone": "The pre-trained network that everything starts from, without its last layer.",
    "balanced weights": "Pictures of rare classes count more, so that every class counts the same as a whole.",
    "block": "A part of the network that belongs together, such as one residual block; parameters are grouped by their "
    "names.",
    "body": "All of the network before its last layer.",
    "calibration": "Whether answers given with 80 % confidence are right 80 % of the time.",
    "calibration error": "The mean gap between confidence and the share of answers that are right, in 15 bins.",
    "confidence interval": "The range that holds the true figure in 95 of 100 repetitions with other pictures.",
    "confusion matrix": "A table that counts, for each label, what the pictures with that label were taken for.",
    "contribution": "A training picture's summand in an answer: all of them and the intercept add up to it.",
    "cross-fitting": "Several networks are moved, each without one part of the pictures, and every picture is read "
    "only by the one that has not seen it.",
    "damping": "How strongly the solution is held near the pre-trained network: little damping follows every picture, "
    "much leaves the network as it was.",
    "F1": "The harmonic mean of precision, the share of given labels that are right, and recall, the share of right "
    "labels that are given.",
    "feature": "One of the numbers that the network makes of a picture just before its last layer.",
    "fine-tuning": "Training a pre-trained network on, with pictures of one's own; ordinarily in many small steps with "
    "a learning rate.",
    "fingerprint": "A short code of a network, its preparation and its choices, by which sums that do not belong "
    "together are refused.",
    "forgetting": "Changing the model into the one that would have been fitted without a picture.",
    "Gram matrix": "The table of the kernel between all pairs of training pictures.",
    "head": "The last layer: what turns features into scores of the classes.",
    "influence": "How much an answer would change if the model had never seen that training picture; calculated "
    "exactly, and not estimated.",
    "intercept": "The part of a score that is the same for all pictures.",
    "Jacobian": "The table of how each output of the network changes with each of its parameters.",
    "K-FAC": "A cheap description of how strongly each layer's parameters act together, as a product of two small "
    "matrices a layer.",
    "kernel": "A number that says how alike the network finds two pictures; here the product of their tangent rows.",
    "landmark": "One of a few chosen pictures that stand for all others where there are too many for a kernel.",
    "leakage": "A test picture that is nearly a training picture, such as the next frame of the same film, which makes "
    "figures look better than they are.",
    "least squares": "Choosing the solution whose summed squared distance from the labels is smallest.",
    "leave-one-out": "Each picture is judged by the model fitted to all the others; here this is calculated, without "
    "fitting again.",
    "leave-one-out error": "The mean squared distance between the labels and the leave-one-out predictions; all "
    "settings are chosen by it.",
    "linear probe": "Only the last layer is fitted, and the network's features stay as they are: the thing to beat.",
    "linearisation": "Replacing the network by its first-order expansion around its weights, so that it can be solved "
    "for in one step.",
    "log-loss": "The mean surprise at the right label, in nats; less is better: 0 is certain and right, and the "
    "logarithm of the number of classes is even guessing.",
    "metric": "A rescaling of the tangent rows, by a power of K-FAC, before the kernel is made of them.",
    "out of distribution": "Unlike all training pictures, as the model sees them, so that its answer is not to be "
    "relied on.",
    "outer steps": "The few minibatch steps that the network itself is moved towards the labels before it is "
    "linearised.",
    "peak memory": "The most memory that the process held at any time.",
    "posterior variance": "What the labels leave open of an answer, when the model is read as a Gaussian process.",
    "pre-trained": "Trained before, on a large set of other pictures.",
    "relabelling": "Changing the model into the one that would have been fitted with another label for a picture.",
    "ridge regression": "Least squares with damping.",
    "score": "A number for each class before it becomes a probability; 1 is a whole label.",
    "source picture": "A picture of related data that helps, and is not judged.",
    "suspect": "A picture whose label all other pictures speak against, and that is worth a second look.",
    "tangent": "The direction in which the parameters move from the pre-trained weights.",
    "tangent kernel": "The kernel of the linearised network: two pictures are alike when the same change of the "
    "parameters moves both answers.",
    "tangent row": "How a picture's features change with each parameter: its row of the Jacobian.",
    "temperature": "One number that all scores are divided by before they become probabilities, fitted so that the "
    "confidences can be believed.",
    "unlabelled": "Without a label yet.",
    "unlearning": "Another word for forgetting.",
    "validation split": "Pictures that other methods set aside to choose their settings; leave-one-out needs none.",
}


@final
class Words:
    """The words that a page explains: a call makes a link to its sentence, which the page lists at its end.

    Example:
        >>> words = Words()
        >>> str(words("damping", "Damping"))[:32]
        '<a class="term" href="#word-damp'
        >>> [term for _, term, _ in words.used]
        ['damping']
    """

    def __init__(self) -> None:
        self._terms: set[str] = set()

    def __call__(self, term: str, shown: str | None = None) -> Markup:
        """A link that shows the sentence on a pointer, and leads to it by key or finger."""
        sentence = TERMS[term]
        self._terms.add(term)
        return Markup('<a class="term" href="#word-{}" title="{}">{}</a>').format(anchor(term), sentence, shown or term)

    @property
    def used(self) -> list[tuple[str, str, str]]:
        """Words so far, in the order of the alphabet: end of the address, word, sentence."""
        return [(anchor(term), term, TERMS[term]) for term in sorted(self._terms, key=str.lower)]


def anchor(term: str) -> str:
    """A word as the end of an address: that of its heading on the site's page too."""
    return term.lower().replace(" ", "-")


def page() -> str:
    """The page of all words in Markdown, a heading a word, as docs/glossary.md has it."""
    lead = "# Glossary\n\nEach word in one sentence. The pages that the library writes say the same of it.\n"
    return lead + "".join(f"\n## {term}\n\n{TERMS[term]}\n" for term in sorted(TERMS, key=str.lower))
