"""Classic hard negative mining, from which the paper sets out (section 2): linear SVMs on the features of a run.

The network stays as it is, and SVMs on its last features take the place of its softmax (Girshick et al., R-CNN, 2014).
"""
