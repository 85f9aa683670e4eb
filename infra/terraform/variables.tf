variable "name" {
  description = "Name of the cluster, and the beginning of all other names."
  type        = string
  default     = "sfumato"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: small letters, digits and dashes, beginning with a letter, at most 31 characters."
  }
}

variable "region" {
  description = "Region that everything is in. k8s/base/platform/settings.yaml names it too."
  type        = string
  default     = "eu-central-1"
}

variable "bucket" {
  description = "Name of the bucket for data, checkpoints and artifacts; unique in the world."
  type        = string
}

variable "api_access" {
  description = "CIDR blocks that may reach the Kubernetes API from outside. Empty: it is private."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_access, "0.0.0.0/0")
    error_message = "api_access: name the addresses that you come from, not the whole world."
  }
}

variable "kubernetes_version" {
  description = "Version of the cluster; k8s/ is checked against 1.32."
  type        = string
  default     = "1.32"
}

variable "gpu_instance_types" {
  description = "Machines for training, all with the same number and kind of GPUs."
  type        = list(string)
  default     = ["g6.4xlarge"]
}

variable "spot_instance_types" {
  description = "Machines for training on spot capacity; more kinds are interrupted less often."
  type        = list(string)
  default     = ["g6.4xlarge", "g6.8xlarge", "g5.4xlarge", "g5.8xlarge"]
}

variable "most_gpu_nodes" {
  description = "How many GPU nodes there may be, on demand and spot each."
  type        = number
  default     = 8

  validation {
    condition     = var.most_gpu_nodes >= 0 && var.most_gpu_nodes <= 64
    error_message = "most_gpu_nodes: 0 to 64."
  }
}

variable "most_cpu_nodes" {
  description = "How many nodes there may be for Ray Data and heads."
  type        = number
  default     = 8
}

variable "database_class" {
  description = "Machine of MLflow's PostgreSQL."
  type        = string
  default     = "db.t4g.medium"
}

variable "lasting" {
  description = "Whether bucket and database survive `terraform destroy`."
  type        = bool
  default     = true
}
