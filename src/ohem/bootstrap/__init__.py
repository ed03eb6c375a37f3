"""Classic hard negative mining (paper, section 2): linear SVMs on the features of a run.

The network is not trained further. SVMs on its last features replace its softmax (Girshick et al., R-CNN, 2014).
"""
