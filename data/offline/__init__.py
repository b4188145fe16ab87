"""Tables of features, for training: `pipeline` for a whole data set, `feature_join` for anybody's examples."""
