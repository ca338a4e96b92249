"""StructKV (Chen, Liu, Shao: arXiv 2604.06746), one file per part of the method.

`saliency` observes a layer, `centrality` sums over layers, `pivot` finds where attention settles, `selection`
chooses what each layer keeps and which tokens go on; `method` puts them together. Needs torch and nothing else.

Notation: N prompt tokens, l layer, H query heads in G KV groups, d head size, w window (the last queries).
"""
