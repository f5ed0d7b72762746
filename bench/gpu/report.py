"""What the steps of bench/gpu.sh gave, as text: a line a step, our times beside the ceilings and
PyTorch's, and the ladders with every kernel's share of its roofline."""

MOST_KERNELS, NAME_WIDTH = 24, 52


def case_text(case):
    """What PyTorch's side told of a case."""
    if "milliseconds" in case:
        return f"{case['case']}:{case['batch']} {case['milliseconds']:.2f} ms"
    return " ".join(f"{dtype} {error:.1e} apart" for dtype, error in case.get("apart", {}).items())


def summary(result):
    """What one step gave, in a line; of a failure all that is known."""
    data = result.get("data") or {}
    if result["status"] != "good":
        return result["why"].strip().replace("\n", "\n" + " " * 12)
    if data.get("milliseconds"):
        rate = f", {data['gflop'] / data['milliseconds']:.2f} TFLOP/s" if data.get("gflop") else ""
        launches = f", {data['launches']} launches" if data.get("launches") else ""
        return f"{data['milliseconds']:.3f} ms{rate}{launches}"
    if "error" in data:
        return f"{data['error']:.1e} apart"
    if isinstance(data.get("cases"), list):
        return ", ".join(case_text(case) for case in data["cases"])
    return ", ".join(f"{k} {v}" for k, v in data.items()
                     if not isinstance(v, (dict, list)) and k != "text")


def peers_of(state, case, batch):
    """What PyTorch took for a case; `train` also shows what two clips to encode take."""
    told = [each for name, result in state.items() if name.startswith("peer ")
            for each in (result.get("data") or {}).get("cases", [])]
    return [each for each in told if "milliseconds" in each
            and each.get("asked", each["batch"]) == batch
            and (each["case"] == case or case == "train" and each["case"] == "train-cond")]


def comparison(name, data, state):
    """A line: one of our times beside the ceilings and the peers'."""
    top = (state.get("ceilings") or {}).get("data") or {}
    words, kind = name.split(), "bf16" if "-bf16" in name else "f32"
    line = f"{name}: {data['milliseconds']:.3f} ms"
    if data.get("unfused_milliseconds"):
        times = data["unfused_milliseconds"] / data["milliseconds"]
        line += f", {times:.2f} times as fast as unfused"
    if data.get("predicted_milliseconds"):
        line += f", {data['predicted_milliseconds']:.3f} predicted"
        share = data["predicted_milliseconds"] / data["milliseconds"]
        line += f", {100 * share:.0f} % of its roofline"
    if top.get(f"{kind}_tflops") and data.get("gflop"):
        share = 100 * data["gflop"] / data["milliseconds"] / top[f"{kind}_tflops"]
        line += f", {share:.0f} % of the {kind} product rate"
    for other in peers_of(state, words[2], data["batch"]):
        times = other["milliseconds"] / other["batch"] / (data["milliseconds"] / data["batch"])
        fits = ""
        if other["batch"] != data["batch"]:
            fits = f" at batch {other['batch']}, the most that fits"
        line += f"; PyTorch {other['mode']} {other['case']} {other['milliseconds']:.3f} ms{fits}"
        line += f" ({times:.2f} times ours)"
    return [line]


def kernel_lines(program):
    """The slowest kernels of a ladder's last rung, each launch by itself: predicted beside
    measured."""
    rows = program.get("kernels") or []
    whole = sum(row["seconds"] for row in rows) or 1
    heads = f"{'ms':>10} {'share':>6} {'predicted':>10} {'roofline':>8} {'times':>5}"
    lines = [f"{heads} {'TFLOP/s':>8} {'GB/s':>8}  kernel"]
    for row in rows[:MOST_KERNELS]:
        seconds, predicted = row["seconds"] or 1e-12, row["predicted_seconds"]
        lines.append(f"{1e3 * row['seconds']:10.4f} {100 * row['seconds'] / whole:5.1f}% "
                     f"{1e3 * predicted:10.4f} {100 * predicted / seconds:7.0f}% "
                     f"{row['launches']:5} {1e-12 * row['flops'] / seconds:8.2f} "
                     f"{1e-9 * row['bytes'] / seconds:8.0f}  "
                     f"{row['computes'][:NAME_WIDTH]:{NAME_WIDTH}} {row['kernel']} "
                     f"{row.get('line') or ''}")
    if len(rows) > MOST_KERNELS:
        rest = sum(row["seconds"] for row in rows[MOST_KERNELS:])
        lines.append(
            f"{1e3 * rest:10.4f} {100 * rest / whole:5.1f}% of {len(rows) - MOST_KERNELS} more")
    return lines


def ladder_lines(name, data):
    """The rungs of a ladder, then its kernels."""
    program = data["report"]["programs"][0]
    lines = ["", f"== {name}, batch {data['batch']}, {data['report'].get('device', '')}",
             f"{'rung':14} {'launches':>8} {'ms':>10} {'predicted':>10} {'speed-up':>8} "
             f"{'memory MB':>10} {'error':>9}"]
    for rung in program["rungs"]:
        error = rung["largest_error"]
        lines.append(f"{rung['name']:14} {rung['launches']:8} {1e3 * rung['seconds']:10.4f} "
                     f"{1e3 * rung['predicted_seconds']:10.4f} {rung['speedup']:7.2f}x "
                     f"{1e-6 * rung['memory_bytes']:10.1f} "
                     + (f"{error:9.1e}" if error is not None else "not finite"))
    return lines + [""] + kernel_lines(program)


def safely(lines, *given):
    """A part of the report; what it lacks must not cost the parts that are there."""
    try:
        return lines(*given)
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        return [f"{given[0]}: not shown, {type(error).__name__}: {error}"]


def text(pack, state, names):
    """The whole report. names: of all steps, in their order."""
    done = [name for name in names if name in state]
    left = [name for name in names if name not in state]
    failed = [name for name in done if state[name]["status"] != "good"]
    lines = [f"commit {pack['commit']}, {'a rehearsal' if pack['rehearsal'] else pack['arch']}",
             f"{len(done) - len(failed)} steps good, {len(failed)} failed, {len(left)} left"]
    lines += [f"failed: {name}" for name in failed] + [""]
    lines += [f"{state[name]['status']:6} {name:46} {state[name]['seconds']:7.1f} s  "
              + summary(state[name])
              + (" (without wgmma)" if state[name].get("without_wgmma") else "") for name in done]
    measured = [(name, state[name].get("data") or {}) for name in done
                if name.split()[0] in ("time", "ladder")]
    lines.append("")
    for name, data in measured:
        if data.get("milliseconds"):
            lines += safely(comparison, name, data, state)
    for name, data in measured:
        if data.get("report"):
            lines += safely(ladder_lines, name, data)
    return "\n".join(lines + [""] + [f"left: {name}" for name in left]) + "\n"
