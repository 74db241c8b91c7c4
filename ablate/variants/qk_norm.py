from torch import nn
from ablate.variants._factor import Factor
qk_norm = Factor("qk_norm", "model.qk_norm", "Norm of queries and keys.")
@qk_norm.variant("none", reference="arXiv:1706.03762")
class NoNorm(nn.Identity):
    """None."""
