"""torchvision's Faster R-CNN, Mask R-CNN and Keypoint R-CNN."""
