"""Ask about a LoRA from Python. Usage: python examples/three_lines.py my-lora (a folder that PEFT wrote)."""

import sys

from weightdiff import Interpreter, WeightDiff

if __name__ == "__main__":
    interpreter = Interpreter.load()
    answer = interpreter.ask(WeightDiff.load(sys.argv[1]), "what topic have you been trained on ?")
    print(f"{answer.text} (evidence {answer.evidence:+.1f} nats)")
