"""Writes models with the packages of their formats, or reads them with the same packages and says what is in them.

    models.py make DIRECTORY     model.gguf and model.safetensors, 12 MiB each, always the same
    models.py read FILE...       a line for each tensor: its name, type, shape and the sha256 of its bytes

Both packages map the file into memory; that is what reading means here.
"""

import hashlib
import mmap
import sys

import gguf
import numpy
import safetensors
import safetensors.numpy


def tensors():
    generator = numpy.random.default_rng(20240506)
    yield "token_embd.weight", generator.standard_normal((1024, 1024), dtype=numpy.float32)
    for layer in range(8):
        yield f"blk.{layer}.attn_q.weight", generator.standard_normal((512, 512)).astype(numpy.float16)
        yield f"blk.{layer}.attn_norm.weight", generator.standard_normal(512, dtype=numpy.float32)
    yield "output.weight", generator.standard_normal((1024, 1000), dtype=numpy.float32)


def make(directory):
    writer = gguf.GGUFWriter(f"{directory}/model.gguf", "llama")
    writer.add_name("a model of noise")
    writer.add_block_count(8)
    for name, values in tensors():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file(dict(tensors()), f"{directory}/model.safetensors", {"format": "np"})


def read(path):
    if path.endswith(".gguf"):
        reader = gguf.GGUFReader(path)
        assert isinstance(reader.data, numpy.memmap)
        print("architecture", bytes(reader.fields["general.architecture"].parts[-1]).decode())
        for tensor in reader.tensors:
            show(tensor.name, tensor.tensor_type.name, tensor.shape, tensor.data)
        return
    with safetensors.safe_open(path, framework="np") as model:
        print("metadata", model.metadata())
        # From the end, as a loader that shares the work over several machines may do it.
        for name in reversed(model.keys()):
            values = model.get_tensor(name)
            show(name, values.dtype, values.shape, values)
    # And as a plain map, which is what the packages' other languages do.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        print("whole", hashlib.sha256(whole).hexdigest())


def show(name, kind, shape, values):
    print(name, kind, list(map(int, shape)), hashlib.sha256(numpy.ascontiguousarray(values)).hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        for name in sys.argv[2:]:
            read(name)
