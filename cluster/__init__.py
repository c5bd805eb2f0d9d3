"""What starts raybench on Kubernetes, AWS, Google Cloud and Slurm, all from one values file."""
