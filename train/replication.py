"""The replication in numbers: what each measure under each update rule says, and what was published.

python -m train.replication                reads results/*-{defined,published,crossed}/, writes results/replication/

    central.csv    the table: AUC, ratio of medians, Definition 3, trends, shares of valid entries, intervals over seeds
    claims.csv     the paper's claims, a verdict a dataset, measure and rule (as `srel_tf.hypotheses` gives them)
    moves.csv      how far one fictitious step moves predictions, where a run has matrices.parquet
    published.csv  the published CIFAR-10 curves beside ours of the same protocol, a row a measure and class pair
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import srel_tf
from srel_tf import FrameError, OptionError, SRelError, rule_names
from srel_tf.files import read_json
from srel_tf.hypotheses import COLUMNS, decide, interval

PUBLISHED_NAMES = {"plane": "airplane", "car": "automobile"}
PUBLISHED_COLUMNS = ["measure", "run", "step", "source_class", "target_class", "srel"]
KEY = ["data", "protocol", "measure", "rule"]
INTRA, INTER = "intra", "inter"


def load(results):
    """{(data, protocol): directory} of what `train.condense` wrote below `results`; `OptionError` if nothing."""
    found = {}
    for mark in sorted(results.glob("*-*/separation.parquet")):
        data, _, protocol = mark.parent.name.rpartition("-")
        found[data, protocol] = mark.parent
    if not found:
        raise OptionError(f"{results} holds no results of train.condense (DATA-PROTOCOL/separation.parquet)")
    return found


def read(directories, name):
    """The tables `name` of all directories, with columns data and protocol."""
    tables = [
        srel_tf.read_frame(path / name).assign(data=data, protocol=protocol)
        for (data, protocol), path in directories.items()
    ]
    return pd.concat(tables, ignore_index=True)


def central(directories):
    """The central table: a row a (data, protocol, measure, rule, quantity) with mean, low, high over the seeds.

    Quantities are of one number a seed. auc, ratio_of_medians (geometric), intra, inter (Definition 3, with the
    diagonal, as the paper has it), off_intra (without it), median_intra, median_inter: means over the measured
    steps after the first epoch. auc_start: at the first measurement. valid: share of valid entries, all steps.
    change_intra, change_inter: log₂ change over the training (`class_claim`).
    """
    separation, pairs = read(directories, "separation.parquet"), read(directories, "pairs.parquet")
    run = [*KEY, "run"]
    first = separation[separation["step"] == separation.groupby(run)["step"].transform("min")]
    later = separation[separation["epoch"] >= 1]
    kind = np.where(pairs["source_class"] == pairs["target_class"], INTRA, INTER)
    after = pairs.assign(kind=kind)[pairs["epoch"] >= 1].groupby([*run, "kind"], sort=False)
    kinds = pd.Index([INTRA, INTER])  # Also where nothing was measured after the first epoch.
    mean, off = (after[name].mean().unstack().reindex(columns=kinds) for name in ("mean", "off_mean"))
    counts = pairs.groupby(run, sort=False)[["off_n_valid", "off_n_pairs"]].sum()
    of_runs = {
        "auc_start": first.groupby(run, sort=False)["auc"].mean(),
        "auc": later.groupby(run, sort=False)["auc"].mean(),
        "ratio_of_medians": np.exp(np.log(later.set_index(run)["ratio_of_medians"]).groupby(run, sort=False).mean()),
        "median_intra": later.groupby(run, sort=False)["median_intra"].mean(),
        "median_inter": later.groupby(run, sort=False)["median_inter"].mean(),
        "intra": mean[INTRA],
        "inter": mean[INTER],
        "off_intra": off[INTRA],
        "valid": counts["off_n_valid"] / counts["off_n_pairs"],
    }
    rows = []
    for quantity, values in of_runs.items():
        for key, of_seeds in values.groupby(KEY, sort=False):
            effects = of_seeds.dropna().to_numpy()
            low_high = dict(zip(("mean", "low", "high"), interval(effects), strict=True))
            rows.append({**dict(zip(KEY, key, strict=True)), "quantity": quantity, **low_high, "n_seeds": len(effects)})
    return pd.concat([pd.DataFrame(rows), _trends(directories)], ignore_index=True)


def _trends(directories):
    """change_intra and change_inter, as `class_claim` estimates them."""
    found = read(directories, "verdicts.csv")
    names = {"intra constant in time": "change_intra", "inter decreasing": "change_inter"}
    found = found[found["claim"].isin(names)]
    found = found.assign(quantity=found["claim"].map(names))
    return found.rename(columns={"effect_size": "mean", "ci_low": "low", "ci_high": "high"})[
        [*KEY, "quantity", "mean", "low", "high", "n_seeds"]
    ]


# Claims on the time dependence of means, and the share of entries from which on a mean is one of a selection.
TRENDS = ("intra constant in time", "inter decreasing", "inter decreases more than intra")
MISSING = 0.05
# "Such a separation", intra above inter, is not seen: a separation the other way round is none of that kind.
NO_SEPARATION = (-np.inf, 0.55)
# What one measure is said to do better than another: (claim, first, second, bounds of AUC(first) − AUC(second)).
COMPARISONS = (
    ("KL separates better than ℓ1", "kl", "l1", (0.01, np.inf)),
    ("ℓ1 and ℓ2 are indistinguishable", "l1", "l2", (-0.01, 0.01)),
    ("softmax outputs separate better than raw ones, ℓ1", "l1", "raw_l1", (0.01, np.inf)),
    ("softmax outputs separate better than raw ones, ℓ2", "l2", "raw_l2", (0.01, np.inf)),
)


def claims(directories):
    """Verdicts on the paper's claims of Section 2.1: those of `class_claim`, and on which measure separates.

    AUCs are means over the measurements after the first epoch, one a seed; differences are paired by seed.
    `valid_last`: share of valid entries at the last step. Where more than `MISSING` of them lack, trends of means are
    undecided: what float32 does not resolve are the rows of the smallest denominators, which carry the means.
    """
    separation = read(directories, "separation.parquet")
    auc = separation[separation["epoch"] >= 1].groupby([*KEY, "update", "estimator", "run"], sort=False)["auc"].mean()
    rows = []
    for (data, protocol, rule), of_rule in auc.groupby(["data", "protocol", "rule"], sort=False):
        by_measure = of_rule.reset_index().pivot(index="run", columns="measure", values="auc")
        about = {"hypothesis": "Section 2.1", "scope": "AUC after the first epoch", "update": rule, "estimator": ""}
        kept = {"data": data, "protocol": protocol, "rule": rule}
        for name in (m for m in ("l1", "l2", "kl", "published_kl", "published_l2") if m in by_measure):
            claim = {**about, "measure": name, "claim": "no separation", "effect": "AUC"}
            rows.append({**decide(claim, by_measure[name].to_numpy(), NO_SEPARATION), **kept})
        for claim, first, second, bounds in COMPARISONS:
            if {first, second} <= set(by_measure):
                gaps = (by_measure[first] - by_measure[second]).to_numpy()
                names = {**about, "measure": f"{first} − {second}", "claim": claim, "effect": "difference of AUC"}
                rows.append({**decide(names, gaps, bounds), **kept})
    found = pd.DataFrame(rows, columns=[*COLUMNS, "data", "protocol", "rule"])
    verdicts = pd.concat([read(directories, "verdicts.csv"), found], ignore_index=True)
    return _of_selections(verdicts, read(directories, "pairs.parquet"))


def _of_selections(verdicts, pairs):
    """The verdicts with `valid_last`, the lower of two measures' where two are compared; see `claims`."""
    last = pairs[pairs["step"] == pairs.groupby(KEY)["step"].transform("max")]
    counts = last.groupby(KEY)[["off_n_valid", "off_n_pairs"]].sum()
    share = counts["off_n_valid"] / counts["off_n_pairs"]
    rows = verdicts[KEY].itertuples(index=False)
    found = verdicts.assign(
        valid_last=[min(share[r.data, r.protocol, m, r.rule] for m in r.measure.split(" − ")) for r in rows]
    )
    selected = found["claim"].isin(TRENDS) & (found["valid_last"] < 1 - MISSING)
    reasons = found["valid_last"].map("{:.0%} of the entries are valid at the last step: a trend of a selection".format)
    return found.assign(
        verdict=found["verdict"].mask(selected, "undecided"), reason=found["reason"].mask(selected, reasons)
    )


def moves(directories):
    """Median ‖Δp‖₁ (at most 2) of one finite fictitious step, at the source, at targets of its class and of others.

    From the matrices that `train.condense --matrices` kept, of one seed: a row a (data, protocol, rule, step).
    """
    rows = []
    for (data, protocol), path in directories.items():
        if not (path / "matrices.parquet").exists():
            continue
        entries = srel_tf.read_frame(path / "matrices.parquet")
        entries["rule"] = rule_names(entries)
        finite = entries[(entries["measure"] == "l1") & (entries["estimator"] != "limit")]
        same = (finite["source_class"] == finite["target_class"]).map({True: INTRA, False: INTER})
        own = finite["source_id"] == finite["target_id"]
        of_rule = finite.assign(kind=same.mask(own, "source")).groupby(["rule", "step", "kind"], sort=False)
        table = of_rule["numerator"].median().unstack().reset_index()
        rows.append(table.assign(data=data, protocol=protocol))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def read_published(path):
    """The published curves; `FrameError` for another table."""
    curves = srel_tf.read_frame(path)
    missing = [name for name in PUBLISHED_COLUMNS if name not in curves]
    if missing:
        raise FrameError(f"{path} lacks the columns {missing}: it is not the table of the published curves")
    return curves


def beside_published(pairs, published):
    """The published curves beside those of our `published` protocol, a row a (measure, source class, target class).

    pairs: our class pairs of rule fresh_adam. published: columns measure, run, epoch, step, source_class, target_class,
    srel, where step s is the measurement after s + 1 updates. Both have several runs; the curves are their means.

    log2_ratio: mean over steps of log₂ of our mean over theirs. correlation: of the two mean curves over time.
    overlap: share of steps at which the ranges of the runs overlap. Two sets of three runs of one experiment overlap
    with probability 1 − 2·3!·3!/6! = 0.9 at a step.
    """
    theirs = published.assign(
        step=published["step"] + 1,
        **{end: published[end].replace(PUBLISHED_NAMES) for end in ("source_class", "target_class")},
    )
    pair = ["measure", "source_class", "target_class"]
    ours = pairs[pairs["measure"].isin(theirs["measure"].unique()) & (pairs["update"] == "fresh_adam")]
    spread = {"mean": "mean", "low": "min", "high": "max"}
    a = ours.groupby([*pair, "step"])["mean"].agg(**spread)
    b = theirs.groupby([*pair, "step"])["srel"].agg(**spread)
    both = a.add_suffix("_ours").join(b.add_suffix("_published"), how="inner")
    if both.empty:
        raise OptionError("the published steps and ours have none in common: measure with --protocol published")
    both["log2_ratio"] = np.log2(both["mean_ours"] / both["mean_published"])
    both["overlap"] = (both["low_ours"] <= both["high_published"]) & (both["low_published"] <= both["high_ours"])
    by_pair = both.groupby(pair, sort=False)
    return (
        by_pair[["mean_ours", "mean_published", "log2_ratio", "overlap"]]
        .mean()
        .assign(
            correlation=by_pair.apply(lambda g: g["mean_ours"].corr(g["mean_published"]), include_groups=False),
            steps=by_pair.size(),
        )
        .reset_index()
    )


def as_table(found, data, protocol):
    """The central table of one run for a terminal: a row a (measure, rule), mean [low, high] in its cells."""
    part = found[(found["data"] == data) & (found["protocol"] == protocol)]
    cells = part.assign(
        cell=[f"{r.mean:.3g} [{r.low:.3g}, {r.high:.3g}]" for r in part[["mean", "low", "high"]].itertuples()]
    )
    wide = cells.pivot(index=["measure", "rule"], columns="quantity", values="cell")
    order = part[["measure", "rule"]].drop_duplicates().itertuples(index=False, name=None)
    return wide.loc[list(order), list(part["quantity"].unique())]


def main(arguments=None):
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.replication", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="what train.condense wrote")
    parser.add_argument("--published", type=Path, help="CSV of the published CIFAR-10 curves, if you have them")
    parser.add_argument("--out", type=Path, help="default: RESULTS/replication")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "replication"
    try:
        out.mkdir(parents=True, exist_ok=True)
        report(load(options.results), options.published, out)
    except (SRelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(directories, published, out):
    """Print and write all tables."""
    found = central(directories)
    written = [srel_tf.write_frame(found, out / "central.csv")]
    for data, protocol in directories:
        seeds = read_json(directories[data, protocol] / "seeds.json")
        print(f"\n{data}, protocol {protocol}, {len(seeds)} seeds; mean [95% interval over seeds]")
        with pd.option_context("display.width", 250, "display.max_columns", 20):
            print(as_table(found, data, protocol).to_string())
    verdicts = claims(directories)
    written.append(srel_tf.write_frame(verdicts, out / "claims.csv"))
    counts = verdicts.groupby(["data", "protocol", "claim", "verdict"], sort=False).size().unstack(fill_value=0)
    print(f"\nverdicts, counted over measures and rules\n{counts.to_string()}")
    moved = moves(directories)
    if len(moved):
        written.append(srel_tf.write_frame(moved, out / "moves.csv"))
        print(f"\nmedian ‖Δp‖₁ of one step\n{moved.to_string(index=False, float_format='{:.3g}'.format)}")
    if published and ("cifar10", "published") in directories:
        pairs = srel_tf.read_frame(directories["cifar10", "published"] / "pairs.parquet")
        curves = beside_published(pairs, read_published(published))
        written.append(srel_tf.write_frame(curves, out / "published.csv"))
        print(f"\npublished curves and ours\n{curves.to_string(index=False, float_format='{:.3g}'.format)}")
    print("written:", *written, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
