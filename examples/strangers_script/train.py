"""Train a linear classifier on some of scikit-learn's digits, and save it.

A plain script with options, as one finds them: it knows nothing of hyper-parameter search.
"""

import argparse
import json
import os

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier


def of_range(text, labels):
    """Which rows show a digit of a range such as 0-4."""
    first, last = map(int, text.split("-"))
    return (labels >= first) & (labels <= last)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", required=True, help="a range to train on: 0-4")
    parser.add_argument("--test-digits", nargs="+", required=True, help="ranges to test on")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--alpha", type=float, default=1e-4, help="weight decay")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume", help="a model.npz to go on from")
    parser.add_argument("--out", required=True, help="folder for model.npz and metrics.json")
    args = parser.parse_args()
    if args.lr * args.alpha >= 1:
        print("lr * alpha must be below 1: every step would turn the weights around")
        raise SystemExit(3)

    images, labels = load_digits(return_X_y=True)
    images = images / 16
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1200], order[1200:]

    model = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=args.lr, alpha=args.alpha, random_state=0
    )
    model.partial_fit(images[:1], labels[:1], classes=np.arange(10))
    if args.resume:
        saved = np.load(args.resume)
        model.coef_, model.intercept_ = saved["coef"], saved["intercept"]

    own = train[of_range(args.digits, labels[train])]
    for epoch in range(args.epochs):
        model.partial_fit(images[own], labels[own])
        accuracy = model.score(images[own], labels[own])
        print(f"epoch {epoch + 1}/{args.epochs}: train accuracy {accuracy:.3f}")

    tested = {}
    for digits in args.test_digits:
        rows = test[of_range(digits, labels[test])]
        tested[digits] = float(model.score(images[rows], labels[rows]))
        print(f"test accuracy on {digits}: {tested[digits]:.3f}")

    os.makedirs(args.out, exist_ok=True)
    np.savez(os.path.join(args.out, "model.npz"), coef=model.coef_, intercept=model.intercept_)
    norm = float(np.linalg.norm(model.coef_))
    with open(os.path.join(args.out, "metrics.json"), "w") as file:
        json.dump({"test_accuracy": tested, "weight_norm": norm}, file)


if __name__ == "__main__":
    main()
