"""Writes the heads in this folder with the numpy that runs it.

Run it once with numpy 1 and once with numpy 2:

    python make.py

Each file holds the weight [[0, 1, 2], [3, 4, 5]] and the bias [6, 7, 8].
"""

import pickle

import numpy

MAJOR = numpy.__version__.split(".")[0]
WEIGHT = numpy.arange(6, dtype="<f4").reshape(2, 3)
BIAS = numpy.arange(6, 9, dtype="<f4")


def dump(name, head, protocol):
    with open(f"numpy{MAJOR}_{name}.pkl", "wb") as file:
        pickle.dump(head, file, protocol=protocol)


for protocol in 2, 3, 4, 5:
    dump(f"protocol{protocol}_rows", [WEIGHT, BIAS], protocol)
    dump(f"protocol{protocol}_columns", [numpy.asfortranarray(WEIGHT), BIAS], protocol)

wide = numpy.arange(12, dtype="<f4").reshape(2, 6)
wide[:, ::2] = WEIGHT
readonly = WEIGHT.copy()
readonly.flags.writeable = False

if MAJOR == "2":
    dump("tuple_f2", (WEIGHT.astype("<f2"), BIAS.astype("<f2")), 4)
    dump("f8", [WEIGHT.astype("<f8"), BIAS.astype("<f8")], 5)
    dump("big_endian", [WEIGHT.astype(">f4"), BIAS.astype(">f8")], 3)
    dump("strided", [wide[:, ::2], BIAS], 5)
    dump("readonly", [readonly, BIAS], 5)
    dump("transposed", [WEIGHT.T.copy(), BIAS], 4)
    dump("refused_objects", [WEIGHT.astype(object), BIAS], 4)
    dump("refused_integers", [WEIGHT.astype("<i4"), BIAS], 4)
    dump("refused_dict", {"weight": WEIGHT, "bias": BIAS}, 4)
    dump("refused_three", [WEIGHT, BIAS, BIAS], 4)

    numpy.savez("positional.npz", WEIGHT, BIAS)
    numpy.savez("named.npz", weight=WEIGHT, bias=BIAS, steps=numpy.arange(4))
    numpy.savez_compressed("packed.npz", W=WEIGHT, b=BIAS)
    numpy.savez("columns.npz", W=numpy.asfortranarray(WEIGHT).astype("<f8"), b=BIAS.astype("<f2"))
    numpy.savez("big_endian.npz", W=WEIGHT.astype(">f4"), b=BIAS.astype(">f4"))
    numpy.savez("refused_objects.npz", W=WEIGHT.astype(object), b=BIAS)
    numpy.save("refused_alone.npy", WEIGHT)
