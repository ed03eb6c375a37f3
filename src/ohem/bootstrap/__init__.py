"""Classic hard negative mining (paper, section 2): linear SVMs on the features of a run.

The network is not trained further. SVMs on its last features replace its softmax (Girshick et al., R-CNN, 2014). The
features are those of RoIs on the feature map (SPPnet, Fast R-CNN), or of crops of the image (R-CNN).
"""
