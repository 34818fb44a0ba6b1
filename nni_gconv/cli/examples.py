"""Examples at the end of every command's help; a test reads each as the command would."""

#: Command -> what a person may type.
EXAMPLES = {
    "shrink": (
        "nni-gconv shrink my_net:Net --weights w.pt --data images/ --macs 0.5 --out s.safetensors",
        "nni-gconv shrink torchvision:resnet18 --weights DEFAULT --params 0.5 --out s.safetensors",
    ),
    "init": (
        "nni-gconv init my_net:Net --data images/",
        "nni-gconv init my_net:Net --data images/ --weights w.pt --macs 0.3 --experiment",
    ),
    "run": (
        "nni-gconv run recipe.yml",
        "nni-gconv run recipe.yml -o prune.budget.macs=0.3 --output runs/smaller",
    ),
    "quickstart": (
        "nni-gconv quickstart",
        "nni-gconv quickstart --keep-ui",
        "nni-gconv quickstart --seeds 3",
    ),
    "create": (
        "nni-gconv create experiment.yml",
        "nni-gconv create experiment.yml --max-trials 6 --concurrency 2 -o train.epochs=5",
    ),
    "resume": ("nni-gconv resume c9ue5h63", "nni-gconv resume c9ue5h63 --max-trials 40"),
    "fetch": ("nni-gconv fetch c9ue5h63",),
    "report": (
        "nni-gconv report runs/one runs/two --html report.html",
        "nni-gconv report c9ue5h63 --json",
    ),
    "compare": ("nni-gconv compare runs/one runs/two",),
    "profile": ("nni-gconv profile resnet56", "nni-gconv profile timm:resnet18 --latency 1"),
    "doctor": (
        "nni-gconv doctor",
        "nni-gconv doctor my_net:Net --input 1x3x48x48",
        "nni-gconv doctor experiment.yml",
    ),
    "docs": ("nni-gconv docs", "nni-gconv docs recipe"),
    "inspect": ("nni-gconv inspect small.safetensors",),
    "search-groups": ("nni-gconv search-groups resnet56 --budget macs=0.5",),
    "search-space": ("nni-gconv search-space recipe.yml",),
    "sensitivity": ("nni-gconv sensitivity recipe.yml",),
    "export": ("nni-gconv export small.safetensors small.onnx --model my_net:Net",),
    "optimize": ("nni-gconv optimize small.safetensors --model my_net:Net",),
}


def epilog(command: str) -> str:
    """Write a command's examples as Markdown."""
    lines = "\n\n".join(f"`{line}`" for line in EXAMPLES[command])
    return f"Examples:\n\n{lines}"
