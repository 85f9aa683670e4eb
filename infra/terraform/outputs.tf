output "cluster_name" {
  description = "aws eks update-kubeconfig --name THIS"
  value       = module.eks.cluster_name
}

output "bucket" {
  description = "For data.path, train.checkpoint.uri and MLFLOW_ARTIFACTS_DESTINATION."
  value       = aws_s3_bucket.data.id
}

output "database_uri" {
  description = "SFUMATO_DATABASE_URI for k8s/make_secrets.py."
  value       = "postgresql://mlflow:${random_password.database.result}@${aws_db_instance.database.address}:5432/mlflow?sslmode=require"
  sensitive   = true
}
